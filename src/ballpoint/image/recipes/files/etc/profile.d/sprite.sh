# Login shells reset PATH; commands started through the API have it already.
PATH="/.sprite/bin:$HOME/.local/bin:$PATH"
export PATH
