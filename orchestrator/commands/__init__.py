"""The commands of the command line, a module for those that belong together. Each imports what a command needs within it."""
