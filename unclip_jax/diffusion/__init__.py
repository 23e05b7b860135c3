"""The diffusion core: pure functions of arrays, no modules, no devices."""
