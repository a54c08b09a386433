"""What a run leaves behind: its folder, where it came from, its tracker, and how to run it again."""
