"""Print the Python blocks of a page as one script: `quick_start.py README.md`."""

import re
import sys
from pathlib import Path

blocks = re.findall(r"^```python\n(.*?)^```$", Path(sys.argv[1]).read_text(), re.M | re.S)
print("\n".join(blocks))
