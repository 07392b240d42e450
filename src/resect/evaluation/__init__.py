"""Ask a model, judge what it says, record both."""
