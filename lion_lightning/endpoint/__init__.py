"""Client of OpenAI-compatible servers: requests, retries and checked replies."""
