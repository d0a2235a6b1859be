ray start --head --block
