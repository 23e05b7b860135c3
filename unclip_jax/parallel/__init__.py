"""Meshes, sharding rules, global batches and multi-process start-up."""
