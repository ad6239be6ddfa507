"""What a running node keeps looking at: agents and disks, space, firewall, images. None of it is on a request's way."""
