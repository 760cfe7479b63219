"""Other quantizers beside ours: what each is asked for, the script that asks it, and the record of what came of it."""
