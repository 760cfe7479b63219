"""Reports: from records to facts, and from facts to HTML, Markdown and plots. Pure: it reads and writes no file."""
