echo "##ray_job $RAY_JOB_NONCE progress {\"done\": 3, \"total\": 10, \"text\": \"epoch 3\"}"
echo "##ray_job $RAY_JOB_NONCE result {\"loss\": 0.12}"
echo "##ray_job $RAY_JOB_NONCE extra {\"rows\": 1000}"
