"""How XLA compiles the programs of the tests, which run for moments only.

To test programs as users get them: XLA_FLAGS="--xla_backend_optimization_level=2
--xla_cpu_use_fusion_emitters=true" python -m pytest. What is set there comes later and so counts.
"""

from importlib import metadata

QUICK = "--xla_backend_optimization_level=1"
# The older of XLA's two generators of code for CPUs takes a third less time. Only XLA of jax 0.10 has it.
if metadata.version("jaxlib").startswith("0.10."):
    QUICK += " --xla_cpu_use_fusion_emitters=false"
