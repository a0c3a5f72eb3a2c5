"""Students that rank: candidates of a list, or the whole catalogue under a trie of semantic IDs."""
