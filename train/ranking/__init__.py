"""Students as rankers: of the candidates of a list, or of the whole catalogue under a trie of semantic IDs."""
