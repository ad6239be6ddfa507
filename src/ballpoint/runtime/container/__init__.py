"""The container runtime: namespaces of one kernel.

`helpers/` are the static programs inside an instance, `zygote` forks its agent, `rootfs` makes its root at the claim,
`instance` is the node's side of one.
"""
