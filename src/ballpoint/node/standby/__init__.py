"""What stands by, so that a create has nothing slow left to do: blanks, and disks for them."""
