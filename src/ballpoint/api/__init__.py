"""The control API: what the node itself answers of the contract, over HTTP on a unix socket behind the edge."""
