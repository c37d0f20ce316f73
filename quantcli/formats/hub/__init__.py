"""Models of the Hugging Face hub: downloaded, read in place by HTTP range, or found in the cache's folders."""
