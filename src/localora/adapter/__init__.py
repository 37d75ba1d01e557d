"""What an adapter is: configs, factors, one layer class, one formula of dW. Not when or where it is placed."""
