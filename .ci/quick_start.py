"""Print the first Python block of a page that imports the library: `quick_start.py README.md`."""

import re
import sys
from pathlib import Path

blocks = re.findall(r"^```python\n(.*?)^```$", Path(sys.argv[1]).read_text(), re.M | re.S)
print(next(block for block in blocks if "import lrl_jax" in block))
