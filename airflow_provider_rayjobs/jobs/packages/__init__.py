"""Local code as packages: choose their files, name, pack and upload them."""
