"""How folders of labelled recordings are laid out, a module each: see `../labelled.py` for what it has."""
