"""Everything that starts Ray, actors and workers. With the commands, the only code that imports ray."""
