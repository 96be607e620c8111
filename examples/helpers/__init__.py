"""Modules that several examples import; none of them is a script."""
