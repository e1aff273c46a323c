"""An adapter behind the OpenAI API: ``protocol`` is what is said, ``app`` who says it, an ``Engine`` who knows the answer."""
