"""Local code as packages: which files are packed, the name and the archive of a package, and its upload."""
