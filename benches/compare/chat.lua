wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = [[{"prompt": "Why is the sky blue, and why is it red in the evening? Explain it to a child of ten.", "system_prompt": "Answer in one sentence.", "generation_config": {"maxOutputTokens": 200}}]]
