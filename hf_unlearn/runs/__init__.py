"""One unlearning experiment, from arguments to cards: what the recipes and the command line share."""
