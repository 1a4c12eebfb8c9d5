// Takes payments with a client that is generated from openapi.json; prints what it read, as JSON.
import createClient from "openapi-fetch";
import type { components, paths, webhooks } from "./api.js";

type Order = components["schemas"]["NewPayment"];
type Message = webhooks["payment.failed"]["post"]["requestBody"]["content"]["application/json"];

const client = createClient<paths>({
  baseUrl: process.env.MARAMOJA_URL,
  headers: { "X-API-Key": process.env.MARAMOJA_KEY },
});

async function pay(order: Order): Promise<unknown> {
  const params = { header: { "Idempotency-Key": crypto.randomUUID() } };
  const { data, error } = await client.POST("/api/v1/payments", { params, body: order });
  if (data) return { id: data.id, status: data.status, failure: data.failure?.code ?? null };
  return { code: error.code, errors: error.errors?.map((one) => one.pointer) };
}

async function show(id: string): Promise<unknown> {
  const { data, error } = await client.GET("/api/v1/payments/{payment_id}", {
    params: { path: { payment_id: id } },
  });
  if (error) return { code: error.code };
  return { status: data.status, failure: data.failure?.code ?? null };
}

// What a receiver of webhooks may rely on, by its types.
export function reasonOf(message: Message): string | undefined {
  return message.data.failure?.message;
}

const order: Order = { amount: 1000, currency: "EUR", payer: "256772123456" };
const [, , id] = process.argv;
const read = id ? [await show(id)] : [await pay(order), await pay({ ...order, payer: "1" })];
console.log(JSON.stringify(read));
