"""Matrix products in bfloat16, of parameters and results in float32."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from lrl_jax.settings import check_choice

COMPUTE_DTYPES = ("float32", "bfloat16")


def check_compute_dtype(compute_dtype: Any) -> str:
    """Check the name of a dtype that networks multiply in.

    Raises:
        ValueError: for any but "float32" and "bfloat16".
    """
    return check_choice("compute_dtype", compute_dtype, COMPUTE_DTYPES)


def matmul(x: jax.Array, kernel: jax.Array, compute_dtype: str = "float32") -> jax.Array:
    """x [..., in] times a kernel [in, out]; see `einsum`."""
    if compute_dtype == "float32":
        return x @ kernel
    return _rounded("...i,io->...o", x, kernel)


def einsum(spec: str, x: jax.Array, y: jax.Array, compute_dtype: str = "float32") -> jax.Array:
    """Multiply two arrays float32, as `jnp.einsum` does.

    Args:
        spec: of the product.
        x, y: its factors.
        compute_dtype: "bfloat16" rounds the factors to bfloat16, which accelerators multiply faster
            by a multiple, and adds up in float32. So do gradients, whose results are rounded.

    Returns:
        float32.
    """
    return jnp.einsum(spec, x, y) if compute_dtype == "float32" else _rounded(spec, x, y)


def _multiply(spec: str, x: jax.Array, y: jax.Array) -> jax.Array:
    x, y = x.astype(jnp.bfloat16), y.astype(jnp.bfloat16)
    return jnp.einsum(spec, x, y, preferred_element_type=jnp.float32)


_rounded: Any = jax.custom_jvp(_multiply, nondiff_argnums=(0,))


def _rounded_jvp(spec, primals, tangents):
    # With a result in bfloat16, what is transposed is bfloat16 throughout: with one in float32,
    # JAX would multiply cotangents in float32.
    (x, y), tangent = (z.astype(jnp.bfloat16) for z in primals), 0.0
    for dx, of in ((tangents[0], lambda d: (d, y)), (tangents[1], lambda d: (x, d))):
        if not isinstance(dx, SymbolicZero):
            factors = of(dx.astype(jnp.bfloat16))
            tangent = tangent + jnp.einsum(spec, *factors).astype(jnp.float32)
    return _rounded(spec, *primals), tangent


_rounded.defjvp(_rounded_jvp, symbolic_zeros=True)


def in_bfloat16(next_fun: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext):
    """Dense layers of a flax module in bfloat16, for `nn.intercept_methods`; the rest unchanged."""
    layer = context.module
    if type(layer) is not nn.Dense or layer.dtype or context.method_name != "__call__":
        return next_fun(*args, **kwargs)
    (x,), params = args, layer.variables["params"]
    out = matmul(x, params["kernel"], "bfloat16")
    return out + params["bias"] if layer.use_bias else out
