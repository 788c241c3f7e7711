"""Mesh and sharding, row gather, hosts, host memory and progress."""
