"""What a Python program uses; ``fedrecall`` itself names it all, and loads it when it is asked for."""
