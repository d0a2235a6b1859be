"""Local code as packages: what of a directory is packed, under which name, in which archive, and how it gets there."""
