"""Using a model: loading it, questions, pictures, jobs over files, chat."""
