"""Flags of XLA with which little is optimised, for what is compiled more than it runs.

Printed where this is run as a script.
"""

from importlib.metadata import version

#: Without LLVM's optimisations compiling takes half as long.
QUICK = "--xla_backend_optimization_level=0"
if tuple(int(x) for x in version("jaxlib").split(".")[:2]) < (0, 11):
    # The older of two code generators takes half as long again; jaxlib 0.11 has only the newer.
    QUICK = f"--xla_cpu_use_fusion_emitters=false {QUICK}"

#: XLA aborts a process whose devices wait for each other longer than half a minute, as they may do
#: on a busy machine.
PATIENT = (
    "--xla_cpu_collective_call_terminate_timeout_seconds=600 "
    "--xla_cpu_collective_timeout_seconds=600"
)

if __name__ == "__main__":
    print(QUICK)
