"""What a sprite costs, beside what other ways of starting a process cost: `python -m bench` (`./dev bench`)."""
