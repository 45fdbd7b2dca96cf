"""Tables of one's own: files, frames and vocabularies -> texts, a label table with stable ids, label ids by row."""
