"""A client of servers that speak OpenAI's protocol: requests, retries, and checked replies."""
