"""Pages of engines, that all say the same, and what they say."""

from __future__ import annotations

from streams.domain.gate.page import EngineReading

#: As vLLM shows itself (0.10 and later), shortened.
VLLM = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="openai/gpt-oss-120b"} 17.0
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="openai/gpt-oss-120b"} 3.0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="openai/gpt-oss-120b"} 0.25
# TYPE vllm:inter_token_latency_seconds histogram
vllm:inter_token_latency_seconds_sum{engine="0",model_name="openai/gpt-oss-120b"} 2.5
vllm:inter_token_latency_seconds_bucket{engine="0",le="0.01",model_name="openai/gpt-oss-120b"} 9
vllm:inter_token_latency_seconds_count{engine="0",model_name="openai/gpt-oss-120b"} 100.0
vllm:time_per_output_token_seconds_sum{engine="0"} 77.0
vllm:time_per_output_token_seconds_count{engine="0"} 7.0
"""
OLD_VLLM = """\
vllm:num_requests_running{model_name="m"} 17.0
vllm:num_requests_waiting{model_name="m"} 3.0
vllm:gpu_cache_usage_perc{model_name="m"} 0.25
vllm:time_per_output_token_seconds_sum{model_name="m"} 2.5
vllm:time_per_output_token_seconds_count{model_name="m"} 100.0
"""
SGLANG = """\
sglang:num_running_reqs{model_name="m",tp_rank="0"} 17.0
sglang:num_running_reqs{model_name="m",tp_rank="1"} 17.0
sglang:num_queue_reqs{model_name="m",tp_rank="0"} 3.0
sglang:token_usage{model_name="m",tp_rank="0"} 0.25
sglang:inter_token_latency_seconds_sum{model_name="m"} 2.5
sglang:inter_token_latency_seconds_count{model_name="m"} 100.0
"""
READING = EngineReading(17.0, 3.0, 0.25, 100.0, 2.5)
