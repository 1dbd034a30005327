"""What is read from traces, as pure functions of spans: waterfalls and verdicts."""
