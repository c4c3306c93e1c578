"""Embeddings as OpenAI's API has them, and reranking as Jina, Cohere, vLLM and llama-server do."""
