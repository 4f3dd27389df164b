"""What is done with q: tasks are outer loops around one training routine."""
