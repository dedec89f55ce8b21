"""What a person looks at: figures, tables, pages, and the reports made of them."""
