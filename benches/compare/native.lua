-- A call in Gemini's own words.
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = [[{"contents": [{"role": "user", "parts": [{"text": "Why is the sky blue, and why is it red in the evening? Explain it to a child of ten."}]}], "systemInstruction": {"parts": [{"text": "Answer in one sentence."}]}, "generationConfig": {"maxOutputTokens": 200}}]]
