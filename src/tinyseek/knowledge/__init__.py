"""Documents of the user's own, asked: files -> blocks -> chunks -> an index -> passages -> an answer that cites file and page."""
