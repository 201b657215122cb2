"""transformer_jax: Transformers for research in JAX."""
