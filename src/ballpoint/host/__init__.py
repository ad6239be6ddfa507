"""Linux, one function per system call or kernel interface, named as its man page names it. Knows nothing of sprites."""
