ray job list
