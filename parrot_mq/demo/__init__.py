"""The demo's subject: generated meetings, the prompts that summarise them, and the summaries to expect."""
