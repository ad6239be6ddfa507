"""Ballpoint: disposable computers with durable disks, on hardware you own."""

__version__ = "0.1.0"
