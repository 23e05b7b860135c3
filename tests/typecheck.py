"""How the tests check the types in signatures; see shapes.py of the package."""

from beartype import BeartypeConf, beartype

# an int will do for a float
check = beartype(conf=BeartypeConf(is_pep484_tower=True))
