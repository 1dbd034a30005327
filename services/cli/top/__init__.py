"""What `apportion top` shows: the figures, their frame, and the screen that holds it."""
